"""What the pruning passes share: importance of units, allocation of what goes, schedules."""
