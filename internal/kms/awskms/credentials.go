package awskms

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/snapferry/snapferry"
)

// Static returns the credentials of an access key; session is "" for one that does
// not expire. The error is Denied when a part is missing.
func Static(accessKey, secretKey, session string) (aws.CredentialsProvider, error) {
	if accessKey == "" || secretKey == "" {
		return nil, snapferry.Errorf(snapferry.Denied, "an access key of AWS has an id and a secret key, and one is missing")
	}
	return credentials.NewStaticCredentialsProvider(accessKey, secretKey, session), nil
}

// Chain returns the credentials that the AWS SDK finds, as the driver of S3 buckets
// does: variables of the environment, shared files, roles of a container or
// machine. profile is of the shared files, "" for the default. It gets them once,
// so that what is wrong is known before the first request. The error is Denied.
func Chain(ctx context.Context, region, profile string) (aws.CredentialsProvider, error) {
	opts := []func(*config.LoadOptions) error{config.WithRegion(region)}
	if profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(profile))
	}
	sdk, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Denied, "read the AWS configuration: %w", err).
			WithHint("correct the AWS_... variables and the files in ~/.aws of the user that runs this")
	}
	if _, err := sdk.Credentials.Retrieve(ctx); err != nil {
		return nil, snapferry.Errorf(snapferry.Denied, "there are no credentials for the key service of AWS: %w", err).
			WithHint("give access_key_id and secret_access_key_file, or give the machine a role")
	}
	return sdk.Credentials, nil
}

// tagged marks errors of a provider, which are none of the key service.
type tagged struct{ aws.CredentialsProvider }

type credentialsError struct{ error }

func (e credentialsError) Unwrap() error { return e.error }

// Retrieve implements aws.CredentialsProvider.
func (t tagged) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := t.CredentialsProvider.Retrieve(ctx)
	if err == nil && (c.AccessKeyID == "" || c.SecretAccessKey == "") {
		err = snapferry.Errorf(snapferry.Denied, "the provider gave an access key without an id or a secret key")
	}
	if err != nil {
		err = credentialsError{err}
	}
	return c, err
}
