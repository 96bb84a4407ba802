"""The schedule: free times, appointments and their steps, series, who waits, the sheets of a day."""
