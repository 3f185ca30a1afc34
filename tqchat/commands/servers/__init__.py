"""Commands that serve: the app to browsers, and answers to other programs."""
