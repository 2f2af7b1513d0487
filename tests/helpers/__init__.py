"""What several test modules share; spawned processes import it by the same name."""
