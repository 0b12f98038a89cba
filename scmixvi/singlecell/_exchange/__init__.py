"""Models and latents that come from elsewhere, or go there: files, scvi-tools' models, obsm."""
