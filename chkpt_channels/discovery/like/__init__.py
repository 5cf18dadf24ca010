"""A checkpoint of the wanted shape, LIKE: what its names and shapes say of the first convs."""
