//! The seed's walkthrough: every command in its order, on the sentiment example.
