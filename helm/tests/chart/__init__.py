"""Checks of the Helm chart, the image and the compose file."""
