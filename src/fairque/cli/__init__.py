"""The command line: `commands` has what users type, `screens` what is drawn, the modules here what both need."""
