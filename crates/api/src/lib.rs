//! The words of the Kubernetes API: catalog, schemas, objects, patches, selectors, codecs.
