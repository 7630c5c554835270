package azurekms

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/snapferry/snapferry"
)

// defaultAuthority gives out tokens in the public cloud.
const defaultAuthority = "https://login.microsoftonline.com"

// ClientConfig is an application that is registered with Microsoft Entra ID. It has
// a secret.
type ClientConfig struct {
	Tenant   string // id of the directory
	ClientID string // id of the application
	Secret   string
	// Authority is https:// and the host that gives out tokens; "" means that of the
	// public cloud.
	Authority  string
	HTTPClient *http.Client // as in Config
	// Backoff is about the first of the waits between four attempts; 0 means 200 ms.
	Backoff time.Duration
}

// ClientSecret returns the credential of an application. It sends nothing. The error
// is Invalid when a part is missing.
func ClientSecret(cfg ClientConfig) (azcore.TokenCredential, error) {
	if cfg.Tenant == "" || cfg.ClientID == "" || cfg.Secret == "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "the credentials for a key vault are a tenant, a client's id and its secret, and one is missing")
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = defaultBackoff
	}
	authority := strings.TrimSuffix(cfg.Authority, "/")
	if authority == "" {
		authority = defaultAuthority
	}
	if u, err := url.Parse(authority); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "authority %.300q is not an https address", cfg.Authority)
	}
	c, err := azidentity.NewClientSecretCredential(cfg.Tenant, cfg.ClientID, cfg.Secret, &azidentity.ClientSecretCredentialOptions{
		ClientOptions: azcore.ClientOptions{
			Cloud:     cloud.Configuration{ActiveDirectoryAuthorityHost: authority},
			Transport: limited{client: httpClient(cfg.HTTPClient, defaultAttempt)},
			Telemetry: policy.TelemetryOptions{Disabled: true},
			Retry: policy.RetryOptions{
				MaxRetries: 3, TryTimeout: defaultAttempt, RetryDelay: cfg.Backoff, MaxRetryDelay: 2 * time.Second, ShouldRetry: mayPass,
			},
		},
		// The authority is what the configuration says, and is not to be looked up.
		DisableInstanceDiscovery: true,
	})
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "credentials for a key vault: %w", err)
	}
	return c, nil
}

// tagged marks errors of a credential, which are none of the vault.
type tagged struct{ azcore.TokenCredential }

type credentialError struct{ error }

func (e credentialError) Unwrap() error { return e.error }

// GetToken implements azcore.TokenCredential.
func (t tagged) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := t.TokenCredential.GetToken(ctx, o)
	if err != nil {
		err = credentialError{err}
	}
	return token, err
}
