"""What fires schedules: the loop in every worker, and the rules for what was missed."""
