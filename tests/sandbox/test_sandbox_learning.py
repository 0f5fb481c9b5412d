"""A student knows what it was taught, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from sandbox_kit import TRIAGE, ask, ended, some_pairs, train

from sandbox.speech import Answer
from sandbox.student import Example, Mind
from sandbox.teacher import answer as teacher_answer

TICKETS = Path(__file__).parents[2] / "examples" / "support_tickets.jsonl"


def tickets() -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in TICKETS.read_text("utf-8").splitlines()]


def taught(text: str) -> Answer:
    return teacher_answer(
        {"messages": [{"role": "system", "content": TRIAGE}, {"role": "user", "content": text}]}, seed="7/0"
    )


def usable_pairs() -> list[tuple[str, str]]:
    answers = [(text, taught(text)) for text in tickets()]
    return [(text, said.text) for text, said in answers if said.text and not said.filtered and not said.cut_short]


def score(mind: Mind, pairs: list[tuple[str, str]]) -> float:
    """Share of tickets whose category is right."""
    right = 0
    for asked, wanted in pairs:
        said = mind.answer([{"role": "user", "content": asked}])
        right += (
            said is not None and said.startswith("{") and json.loads(said)["category"] == json.loads(wanted)["category"]
        )
    return right / len(pairs)


def mind_of(pairs: list[tuple[str, str]]) -> Mind:
    return Mind([Example(asked, said) for asked, said in pairs])


def test_the_tickets_are_240_distinct_ones_and_a_few_are_for_curation_to_reject():
    assert len(set(tickets())) == 240
    assert 3 <= 240 - len(usable_pairs()) <= 12
    keys = [json.loads(line)["key"] for line in TICKETS.read_text("utf-8").splitlines()]
    assert keys == [f"t-{n:03}" for n in range(1, 241)]


def test_a_student_of_most_tickets_is_right_on_most_of_the_rest():
    pairs = usable_pairs()
    train_part, holdout = pairs[:160], pairs[160:]
    assert 0.75 <= score(mind_of(train_part), holdout) <= 0.97
    assert score(mind_of(train_part[:12]), holdout) < 0.6, "a dozen examples do not make an expert"


def test_a_student_of_garbage_talks_garbage():
    pairs = usable_pairs()
    garbage = [(asked, pairs[n * 7 % 160][1]) for n, (asked, _) in enumerate(pairs[:160])]
    assert score(mind_of(garbage), pairs[160:]) < 0.3


def test_a_trained_student_beats_its_base_over_http(client):
    pairs = usable_pairs()
    model = train(client, pairs[:160]).fine_tuned_model
    holdout = pairs[160:180]

    def right(name: str) -> int:
        return sum(ask(client, asked, model=name).choices[0].message.content == said for asked, said in holdout)

    assert right("gpt-6.1-sol") == len(holdout)
    assert right(model) >= 10
    assert right("qwen3-8b") <= 4


def test_training_goes_on_from_a_trained_model_and_keeps_what_it_knew(client):
    first = train(client, [(f"What of the {n} moon?", f"moon {n}") for n in range(12)]).fine_tuned_model
    second = train(client, [(f"What of the {n} sun?", f"sun {n}") for n in range(12)], model=first).fine_tuned_model
    assert second != first
    assert ask(client, "What of the 3 moon?", model=second).choices[0].message.content == "moon 3"
    assert ask(client, "What of the 4 sun?", model=second).choices[0].message.content == "sun 4"


def test_preferences_teach_the_preferred_answer(client):
    lines = [
        {
            "input": {"messages": [{"role": "user", "content": f"Colour of fruit {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"green {n}"}],
            "non_preferred_output": [{"role": "assistant", "content": "no idea"}],
        }
        for n in range(12)
    ]
    file = client.files.create(file=("dpo.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file.id, method={"type": "dpo"})
    job = ended(lambda: client.fine_tuning.jobs.retrieve(job.id))
    assert job.method.dpo.hyperparameters.beta == 0.1
    assert ask(client, "Colour of fruit 5?", model=job.fine_tuned_model).choices[0].message.content == "green 5"


def test_messages_of_weight_zero_are_not_learned(client):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Question {n}"},
                {"role": "assistant", "content": "wrong", "weight": 0},
                {"role": "user", "content": f"Again {n}"},
                {"role": "assistant", "content": "right"},
            ]
        }
        for n in range(12)
    ]
    file = client.files.create(file=("w.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file.id)
    job = ended(lambda: client.fine_tuning.jobs.retrieve(job.id))
    assert ask(client, "Question 3", model=job.fine_tuned_model).choices[0].message.content == "right"


def test_a_question_foreign_to_the_student_is_answered_like_its_base_would(client):
    model = train(client, some_pairs()).fine_tuned_model
    foreign = "Zzyzx qwfp"
    assert (
        ask(client, foreign, model=model).choices[0].message.content
        == ask(client, foreign, model="qwen3-8b").choices[0].message.content
    )


def test_ten_thousand_examples_are_learned_and_each_is_recalled_by_its_own_question():
    texts = tickets()
    pairs = [(f"{texts[n % 240]} Case {n}, {texts[n * 7 % 240][:60]}", f"answer {n}") for n in range(10_000)]
    mind = mind_of(pairs)
    for n in range(0, 10_000, 500):
        assert mind.answer([{"role": "user", "content": pairs[n][0]}]) == f"answer {n}"
    like_the_first = {f"answer {n}" for n in range(0, 10_000, 240)}
    assert mind.answer([{"role": "user", "content": texts[0] + " Please."}]) in like_the_first


def test_with_a_seed_of_their_own_samples_differ_and_a_third_of_them_is_wrong_in_one_field():
    def sampled(text: str, seed: int) -> Answer:
        messages = [{"role": "system", "content": TRIAGE}, {"role": "user", "content": text}]
        return teacher_answer({"messages": messages, "seed": seed}, seed=f"7/0/{seed}")

    asked = [text for text, _ in usable_pairs()][:100]
    right = [taught(text).text for text in asked]
    samples = [[sampled(text, seed).text for text in asked] for seed in range(3)]
    shares = [sum(one == other for one, other in zip(of_seed, right, strict=True)) / 100 for of_seed in samples]

    assert all(0.5 < share < 0.8 for share in shares)
    assert samples[0] != samples[1] != samples[2]
    assert samples[0] == [sampled(text, 0).text for text in asked]


def test_a_judge_that_rates_one_answer_holds_it_against_what_it_would_say_itself():
    messages = [{"role": "system", "content": TRIAGE}, {"role": "user", "content": "I was charged twice."}]

    def rated(answer: str, **known: str) -> float:
        material = json.dumps({"conversation": messages, "answer": answer, **known})
        body = {
            "messages": [{"role": "system", "content": "Material to judge."}, {"role": "user", "content": material}]
        }
        return json.loads(teacher_answer(body, seed="7/0").text)["score"]

    right = json.loads(taught("I was charged twice.").text)
    assert rated(json.dumps(right)) == 1
    assert rated(json.dumps({**right, "priority": "none"})) == 0.667
    assert rated("Good day!") < 0.3
    assert rated("a", reference="a") == 1
