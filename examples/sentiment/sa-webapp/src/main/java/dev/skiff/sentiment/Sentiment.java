package dev.skiff.sentiment;

/** What the sentiment service answers: the sentence and how friendly it sounds, from -1 to 1. */
public record Sentiment(String sentence, float polarity) {}
