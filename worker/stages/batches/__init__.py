"""generating by the file: the teacher's pass through the provider's Batch API, at half the price.

The pass is the one that pumps would work on, with the same ledger, budget and completions, but no pump sees it: this
stage claims all its chunks under one fixed name, so that after a crash the calls begun in that name are still its own.
A batch is a row of the job (`BatchRun`).  Which prompts it asks is told by the calls begun in its name, so its input
file can be written again, byte for byte; submitting is exactly-once in the way of worker/stages/submission.py.

`rounds` decides what comes next; of one batch, `filling` begins the calls, `submission` uploads and submits them,
`following` waits for the provider, and `collecting` joins the answers with their prompts."""
