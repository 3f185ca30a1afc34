"""The Hugging Face hub over the network: search, listings, downloads."""
