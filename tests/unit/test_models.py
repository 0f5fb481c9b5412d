"""Rows that were written before a field was there are read as they were meant."""

import msgspec

from shared.completions import Decision
from shared.models import JobSpec, Manifest, Prompt, PromptCounts


def test_a_request_from_before_samples_and_scores_asks_once_and_scores_nothing():
    old = b"""{"teacher": {"provider": "openai", "model": "gpt-6.1-sol"}, "students": [{"provider": "openai",
    "model": "gpt-4.1-mini", "hyperparameters": {"n_epochs": "auto"}}], "source": "inline",
    "curation": {"min_accepted": 5}}"""

    spec = msgspec.json.decode(old, type=JobSpec)

    assert (spec.teacher.samples, spec.curation.grader, spec.curation.min_score) == (1, None, None)
    assert spec.students[0].method == "supervised"


def test_a_manifest_from_before_its_files_were_kept_still_names_those_it_knows():
    old = b"""{"sha256": "ab", "holdout_sha256": "cd", "train": 7, "validation": 1, "holdout": 2, "rejected": {},
    "train_bytes": 70}"""

    manifest = msgspec.json.decode(old, type=Manifest)

    train, holdout = manifest.file("train", "openai_chat"), manifest.file("holdout", "openai_chat")
    assert train is not None
    assert holdout is not None
    assert (train.sha256, train.lines, train.bytes) == ("ab", 7, 70)
    assert (holdout.sha256, holdout.lines, holdout.bytes) == ("cd", 2, None)
    assert manifest.file("train", "raw") is None


def test_what_is_not_said_takes_no_room_in_a_row():
    assert msgspec.json.encode(Decision(status="accepted", split="train")) == b'{"status":"accepted","split":"train"}'
    assert msgspec.json.encode(Prompt(messages=[])) == b'{"messages":[]}'
    assert msgspec.json.decode(b'{"prompts": 3}', type=PromptCounts) == PromptCounts(prompts=3)
