"""load.py ships in every bundle: it imports nothing of edgekit's, and edgekit runs bundles through it."""
