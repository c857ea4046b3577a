// An operator as teams write them on controller-runtime: it keeps a Deployment and a Service for each Page.
//
// It tells on its standard output how it spoke with the server, one line for each habit when it is first seen, since
// that is what the test is about: protobuf for core types, streamed lists, and the Lease of its leader election.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const finalizer = "web.example.com/farewell"

// pages reconciles Pages.
type pages struct {
	client.Client
	recorder events.EventRecorder
}

func (r *pages) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	page := &Page{}
	if err := r.Get(ctx, request.NamespacedName, page); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !page.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, r.sayFarewell(ctx, page)
	}
	if controllerutil.AddFinalizer(page, finalizer) {
		return ctrl.Result{}, r.Update(ctx, page)
	}
	deployment, err := r.deployment(ctx, page)
	if err != nil {
		return ctrl.Result{}, err
	}
	if err := r.service(ctx, page); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.status(ctx, page, deployment)
}

// deployment makes the Page's Deployment what the Page asks for.
func (r *pages) deployment(ctx context.Context, page *Page) (*appsv1.Deployment, error) {
	labels := map[string]string{"page": page.Name}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: page.Name, Namespace: page.Namespace}}
	done, err := controllerutil.CreateOrUpdate(ctx, r.Client, deployment, func() error {
		deployment.Spec.Replicas = page.Spec.Replicas
		deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		deployment.Spec.Template.Labels = labels
		if len(deployment.Spec.Template.Spec.Containers) == 0 {
			deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "web"}}
		}
		web := &deployment.Spec.Template.Spec.Containers[0]
		web.Image = "busybox"
		web.Command = []string{"sh", "-c", "echo \"$TEXT\" > index.html; exec httpd -f -p 8080"}
		web.Env = []corev1.EnvVar{{Name: "TEXT", Value: page.Spec.Text}}
		grace := int64(1)
		deployment.Spec.Template.Spec.TerminationGracePeriodSeconds = &grace
		return controllerutil.SetControllerReference(page, deployment, r.Scheme())
	})
	if done != controllerutil.OperationResultNone {
		r.recorder.Eventf(page, deployment, corev1.EventTypeNormal, "Deployed", "Deploy", "deployment %s", done)
	}
	return deployment, err
}

// service applies the Page's Service on the server's side.
func (r *pages) service(ctx context.Context, page *Page) error {
	service := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: page.Name, Namespace: page.Namespace},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"page": page.Name},
			Ports:    []corev1.ServicePort{{Port: 80}},
		},
	}
	if err := controllerutil.SetControllerReference(page, service, r.Scheme()); err != nil {
		return err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(service)
	if err != nil {
		return err
	}
	delete(content, "status")
	return r.Apply(ctx, applyOf(content), client.FieldOwner("pages"), client.ForceOwnership)
}

// status writes what is there into the Page, where it differs.
func (r *pages) status(ctx context.Context, page *Page, deployment *appsv1.Deployment) error {
	before := page.DeepCopy()
	page.Status.ReadyReplicas = deployment.Status.ReadyReplicas
	page.Status.ObservedGeneration = page.Generation
	ready := metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: "Waiting", Message: "pods are missing"}
	if page.Spec.Replicas != nil && deployment.Status.ReadyReplicas == *page.Spec.Replicas {
		ready = metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue, Reason: "AllThere"}
	}
	ready.ObservedGeneration = page.Generation
	meta.SetStatusCondition(&page.Status.Conditions, ready)
	return r.Status().Patch(ctx, page, client.MergeFrom(before))
}

// sayFarewell leaves a note behind and lets the Page go.
func (r *pages) sayFarewell(ctx context.Context, page *Page) error {
	note := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: page.Name + "-gone", Namespace: page.Namespace},
		Data:       map[string]string{"text": page.Spec.Text},
	}
	if err := r.Create(ctx, note); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	if controllerutil.RemoveFinalizer(page, finalizer) {
		return r.Update(ctx, page)
	}
	return nil
}

// habits tells each kind of request once.
type habits struct {
	next http.RoundTripper
	seen sync.Map
}

func (h *habits) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := h.next.RoundTrip(request)
	if err != nil {
		return response, err
	}
	resource := request.URL.Path[strings.LastIndex(request.URL.Path, "/")+1:]
	media := response.Header.Get("Content-Type")
	query := request.URL.Query()
	switch {
	case request.Method == http.MethodGet && query.Get("watch") == "true" && query.Get("sendInitialEvents") == "true":
		h.tell(fmt.Sprintf("streamed list of %s as %s: %d", resource, media, response.StatusCode))
	case request.Method == http.MethodPost && request.Header.Get("Content-Type") == runtime.ContentTypeProtobuf:
		h.tell(fmt.Sprintf("created in %s with protobuf, answered as %s: %d", resource, media, response.StatusCode))
	}
	return response, err
}

func (h *habits) tell(line string) {
	if _, told := h.seen.LoadOrStore(line, true); !told {
		fmt.Println(line)
	}
}

func run() error {
	identity := flag.String("identity", "one", "how this process is called in what it prints")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	addPages(scheme)
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &habits{next: next} })
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme,
		LeaderElection:                true,
		LeaderElectionID:              "pages.web.example.com",
		LeaderElectionNamespace:       "default",
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress:        "0",
	})
	if err != nil {
		return err
	}
	if err := manager.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	reconciler := &pages{Client: manager.GetClient(), recorder: manager.GetEventRecorder("pages")}
	err = ctrl.NewControllerManagedBy(manager).For(&Page{}).Owns(&appsv1.Deployment{}).Owns(&corev1.Service{}).Complete(reconciler)
	if err != nil {
		return err
	}
	go func() {
		<-manager.Elected()
		fmt.Println(*identity, "leads")
	}()
	return manager.Start(ctrl.SetupSignalHandler())
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ended in order")
}
