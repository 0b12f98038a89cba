"""Training a MixtureSCVI."""
