"""What is refused, each in one sentence, before anything is changed."""
