"""Prompts and parameters that long comparisons share."""

from __future__ import annotations

PROMPTS = {
    "story": "Once upon a time there was a king who had three sons, and the youngest of them went out into the wood to",
    "code": "def find_maximum(numbers):\n    largest = numbers[0]\n    for number in numbers:\n        if number >",
    "math": "Question: Tom has 12 apples and gives 5 to Anna. How many apples has he left?\nAnswer:",
}
PARAMS = {
    "greedy": {"temperature": 0.0},
    "nucleus": {"temperature": 0.7, "top_p": 0.9, "seed": 11},
    "all": {
        "temperature": 1.0,
        "top_k": 200,
        "min_p": 0.001,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.1,
        "logit_bias": {20: 1.5},
        "seed": 12,
    },
}
LENGTH = 256
