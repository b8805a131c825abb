"""How to call a server: requests and answers, no policy. Retries and choices are the caller's."""
