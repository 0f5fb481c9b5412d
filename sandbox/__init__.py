"""An OpenAI-compatible server with a memory: teachers that answer by rules, students that learn what they are given."""
