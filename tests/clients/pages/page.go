package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Page is a text that is served.
type Page struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              PageSpec   `json:"spec,omitempty"`
	Status            PageStatus `json:"status,omitempty"`
}

// PageSpec is what a user asks for; the definition defaults the replicas.
type PageSpec struct {
	Text     string `json:"text"`
	Replicas *int32 `json:"replicas,omitempty"`
}

// PageStatus is what the operator saw.
type PageStatus struct {
	ReadyReplicas      int32              `json:"readyReplicas,omitempty"`
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

// PageList is a list of Pages.
type PageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Page `json:"items"`
}

// DeepCopy gives a Page that shares nothing with this one.
func (p *Page) DeepCopy() *Page {
	copied := *p
	p.ObjectMeta.DeepCopyInto(&copied.ObjectMeta)
	if p.Spec.Replicas != nil {
		replicas := *p.Spec.Replicas
		copied.Spec.Replicas = &replicas
	}
	copied.Status.Conditions = append([]metav1.Condition(nil), p.Status.Conditions...)
	return &copied
}

// DeepCopyObject is the same for who knows it as an object only.
func (p *Page) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopyObject copies the list and what stands in it.
func (l *PageList) DeepCopyObject() runtime.Object {
	copied := *l
	l.ListMeta.DeepCopyInto(&copied.ListMeta)
	copied.Items = make([]Page, len(l.Items))
	for i := range l.Items {
		copied.Items[i] = *l.Items[i].DeepCopy()
	}
	return &copied
}

// addPages makes the scheme know Pages.
func addPages(scheme *runtime.Scheme) {
	version := schema.GroupVersion{Group: "web.example.com", Version: "v1"}
	scheme.AddKnownTypes(version, &Page{}, &PageList{})
	metav1.AddToGroupVersion(scheme, version)
}

// applyOf is an object's content as server-side apply takes it.
func applyOf(content map[string]any) runtime.ApplyConfiguration {
	return client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content})
}
