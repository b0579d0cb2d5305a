"""The compiler: trace, plan, pipeline, verify, report. Imports no concrete pass or backend."""
