"""What language models write for the train split, before anything learns from it: answers to its prompts."""
