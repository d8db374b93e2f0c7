"""Two levels and more: hypergradients, and what is learned by them."""
