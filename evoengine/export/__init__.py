"""What leaves evoengine: a study's best config in a form that other builds can use."""
