//! Queue, filters, scores and binding.
