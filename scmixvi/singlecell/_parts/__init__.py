"""What a MixtureVAE is made of."""
