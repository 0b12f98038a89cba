"""Placeholder until the fast version is merged."""


def log_likelihood(px, x, theta=None):
    return px.log_prob(x).sum(-1)
