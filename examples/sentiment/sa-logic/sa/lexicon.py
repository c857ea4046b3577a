"""How friendly a sentence sounds: a small lexicon with negation, from -1.0 to 1.0."""

import re

WORDS = {
    "amazing": 0.8, "awesome": 0.9, "bad": -0.7, "beautiful": 0.85, "best": 1.0, "boring": -0.6, "broken": -0.5,
    "calm": 0.3, "cool": 0.35, "disappointing": -0.6, "excellent": 1.0, "fast": 0.2, "fun": 0.3, "glad": 0.5,
    "good": 0.7, "great": 0.8, "happy": 0.8, "hate": -0.8, "horrible": -1.0, "interesting": 0.5, "like": 0.3,
    "love": 0.5, "nice": 0.6, "perfect": 1.0, "poor": -0.4, "sad": -0.5, "slow": -0.3, "terrible": -1.0,
    "ugly": -0.7, "useful": 0.3, "useless": -0.5, "wonderful": 1.0, "worst": -1.0, "yogobella": 0.0,
}
NEGATIONS = {"not", "no", "never", "isn't", "don't", "doesn't", "wasn't", "didn't", "can't"}
INTENSIFIERS = {"very": 1.3, "really": 1.2, "so": 1.1, "extremely": 1.5, "slightly": 0.5}


def polarity(sentence: str) -> float:
    """The mean weight of the known words, turned around (and halved) behind a negation."""
    weights, factor, negated = [], 1.0, False
    for word in re.findall(r"[a-z']+", sentence.lower()):
        if word in NEGATIONS:
            negated = True
        elif word in INTENSIFIERS:
            factor *= INTENSIFIERS[word]
        elif word in WORDS:
            weight = WORDS[word] * factor * (-0.5 if negated else 1.0)
            weights.append(max(-1.0, min(1.0, weight)))
            factor, negated = 1.0, False
    return round(sum(weights) / len(weights), 4) if weights else 0.0
