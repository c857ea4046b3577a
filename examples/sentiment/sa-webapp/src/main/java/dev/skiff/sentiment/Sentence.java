package dev.skiff.sentiment;

/** What the browser sends. */
public record Sentence(String sentence) {}
