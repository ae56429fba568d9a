"""When something fires, as pure values: cron expressions, intervals, moments."""
