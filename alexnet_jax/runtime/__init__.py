"""What a JAX program on one or many hosts needs, whatever the network."""
