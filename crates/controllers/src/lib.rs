//! One module per controller: plan (pure) and apply.
