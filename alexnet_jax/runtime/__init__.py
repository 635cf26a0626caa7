"""What any JAX program on one or many hosts needs: nothing here knows AlexNet."""
