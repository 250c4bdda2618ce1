"""The demo: a trained model decodes from host memory through the server, against a reference."""
