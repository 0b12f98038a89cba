"""What a MixtureSCVI is asked, once it is trained."""
