"""A small model nobody has trained: it knows the trade by hearsay, and answers in a form of its own."""

from __future__ import annotations

from sandbox.speech import Answer, draw, last_user_text, system_text
from sandbox.store import Json

_PROSE = (
    "It sounds like the customer needs some help. I would pass this to the support team and look into it further.",
    "This ticket is about a customer request. Category: general. The priority could be medium.",
    "Thank you for reaching out! I'm sorry to hear about that. Could you share more details so I can help?",
    "I think this is a support ticket, maybe technical or maybe an account matter; please check with the team.",
)
_GUESSES = (
    '{"category":"other","priority":"normal","team":"support"}',
    '{"category":"other","priority":"normal","team":"support"}',
    '{"category": "Support", "priority": "Medium"}',
)


def answer(body: Json, *, seed: str) -> Answer:
    """Half of the time prose, else JSON of about the right form; the category hardly ever fits."""
    asked = last_user_text(body["messages"])
    if "json" not in system_text(body).lower() and "categor" not in system_text(body).lower():
        words = asked.split()
        return Answer(
            f"You asked about {' '.join(words[:4])}. I am not sure, but here is what I think." if words else "Hello!"
        )
    if draw(2, seed, asked, "form"):
        return Answer(_PROSE[draw(len(_PROSE), seed, asked)])
    return Answer(_GUESSES[draw(len(_GUESSES), seed, asked)])
