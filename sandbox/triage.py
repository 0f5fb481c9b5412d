"""The rules by which a teacher triages a support ticket: category, priority and team from the words of the customer."""

from __future__ import annotations

import re
from collections.abc import Mapping

TEAMS: Mapping[str, str] = {
    "security": "security",
    "outage": "reliability",
    "refund": "finance",
    "billing": "finance",
    "login": "identity",
    "shipping": "logistics",
    "bug": "engineering",
    "feature_request": "product",
    "other": "support",
}
PRIORITIES = ("low", "normal", "high", "urgent")

#: Pattern and weight; the category with the largest sum wins, an earlier one at a tie.
_CUES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "security": (
        (r"phish\w*|malware|ransom\w*|vulnerabilit\w+|exploit\w*|\bxss\b|data breach|breach\w*", 5),
        (r"hacked|compromised|suspicious\w*|unauthori[sz]ed|stolen|leak(ed|ing)?|exposed", 4),
        (r"(did not|didn'?t|don'?t) recogni[sz]e|unknown device|strange (log ?in|session)|spoof\w*", 4),
        (r"security|gdpr|\bpublicly\b", 2),
    ),
    "outage": (
        (r"outage|\b50[234]\b|status page|(is|are|it's|went|been|gone|cloud) (completely |totally |all )?down\b", 5),
        (
            r"unreachable|nobody (here )?can|no ?one (here |in the office )?can|for everyone"
            r"|whole (team|office|company|site)",
            4,
        ),
        (r"(all|every one) of our (users|customers|sites|stores)|timing out|times? out", 3),
    ),
    "refund": (
        (r"refund\w*|money back|chargeback|reimburse\w*", 6),
        (r"\breturn(ed|ing)?\b|give me back|cancell?ation fee", 3),
    ),
    "billing": (
        (r"invoice\w*|billing|billed|\bvat\b|tax id|purchase order|credit note", 5),
        (r"charged|charges?\b|overcharg\w*|payments?|credit card|direct debit|receipts?|subscription|renewal", 3),
        (r"\bplan\b|pric(e|es|ing)|discount|coupon|seats?\b", 2),
    ),
    "login": (
        (r"log(ging|ged)? ?-?in\b|sign(ing|ed)? ?-?in\b|password\w*|locked\b|\bsso\b|\b2fa\b|two-factor", 5),
        (
            r"authenticator|verification (code|e-?mail)|reset link|\blogins?\b|credentials"
            r"|sign(ed|ing|s)? (me )?out|log(ged|s)? me out|passkey|one-time code",
            5,
        ),
    ),
    "shipping": (
        (r"parcel\w*|shipment\w*|shipp(ed|ing)|courier\w*|tracking|deliver(y|ed|ies)?\b|dispatch\w*|customs", 4),
        (r"package\w*|warehouse|doorstep|arriv(e|ed|es|ing)|depot|pallet", 3),
    ),
    "feature_request": (
        (
            r"feature\w*|would (really )?be (great|nice|lovely|handy|useful)|(could|can) you (please )?add"
            r"|please add",
            5,
        ),
        (r"\bwish\b|suggest\w*|roadmap|any plans|dark mode|(would|we'?d|i'?d) love|it'?d be (great|nice|handy)", 5),
        (r"idea\b|\bvote\b|support for|integration", 2),
    ),
    "bug": (
        (r"\bbugs?\b|crash\w*|freez\w+|frozen|glitch\w*|stack ?trace|error\w*|exception", 4),
        (
            r"(does ?n'?t|not|stopped|isn'?t|don'?t) (work|working|respond\w*|sav\w+|load\w*|sync\w*)"
            r"|broken|blank|garbled",
            4,
        ),
        (
            r"wrong (total|number|date|time|order|column|currency)\w*|numbers are wrong"
            r"|vanish\b|inserts the letter|duplicat\w+|stuck|spinn\w+|disappear\w*",
            3,
        ),
    ),
}
_URGENT = (
    r"\burgent(ly)?\b|\basap\b|emergency|immediately|right now|right away|critical"
    r"|losing (money|orders|customers|sales)"
)
_HIGH = (
    r"\btoday\b|blocked|blocking|can'?t work|cannot work|as soon as possible|deadline|(second|third|fourth|fifth) time"
    r"|still waiting|unacceptable|furious|\bangry\b|important|escalat\w+|tomorrow"
)
_LOW = (
    r"no rush|not urgent|whenever|no hurry|low priority|\bminor\b|small thing|just curious|\bfyi\b|cosmetic"
    r"|nothing serious"
)
_USUAL: Mapping[str, str] = {"outage": "urgent", "security": "high", "feature_request": "low"}


def category_of(ticket: str) -> str:
    text = ticket.lower().replace("’", "'")
    sums = {name: sum(w for pattern, w in cues if re.search(pattern, text)) for name, cues in _CUES.items()}
    best = max(sums, key=lambda name: sums[name])
    return best if sums[best] >= 2 else "other"


def priority_of(ticket: str, category: str) -> str:
    """Calm words win over hurried ones ("not urgent"); without any, what is usual for the category."""
    text = ticket.lower().replace("’", "'")
    if re.search(_LOW, text):
        return "low"
    if re.search(_URGENT, text):
        return "urgent"
    usual = _USUAL.get(category, "normal")
    if re.search(_HIGH, text):
        return max("high", usual, key=PRIORITIES.index)
    return usual


def triage(ticket: str) -> dict[str, str]:
    category = category_of(ticket)
    return {"category": category, "priority": priority_of(ticket, category), "team": TEAMS[category]}
