//! What the agent shows of itself: the admin API on a unix socket (the CLI's other end) and metrics over HTTP.
