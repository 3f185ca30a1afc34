"""Import of conversations of other programs: ChatGPT, Claude, LM Studio, Markdown."""
