"""Arrays that grow along the token axis, and one side (keys or values) of a layer made of them."""
