"""The comparison of every system: what was judged, intervals, tables beside the paper's, figures and the report."""
