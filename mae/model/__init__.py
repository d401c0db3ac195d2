"""The masked autoencoder and what it is made of. Shapes: see the names in docs/architecture.md."""
