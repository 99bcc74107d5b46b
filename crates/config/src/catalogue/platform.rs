//! The platform's stores of settings, and how AWS is reached.

use std::time::Duration;

use voiceai_runtime::Secret;

use super::form::{is_aws_region, is_namespace};
use crate::setting::settings;
use crate::value::kinds::{boolean, seconds, secret, text};

settings! {
    "Platform", "With `NAMESPACE` set, settings are also read from SSM under `/<NAMESPACE>/ops/` and from the secrets whose names begin with `<NAMESPACE>/ops/`; a layer that cannot be read ends the start with exit code 5. AWS calls use the standard credential chain; further standard `AWS_` variables (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, `AWS_CA_BUNDLE`, …) are read by the AWS library itself, from the environment of the process only.";

    /// Where the platform keeps this environment's settings, such as `voiceai/staging`. Unset: the environment alone is read.
    NAMESPACE: String = text().bootstrap()
        .check("names separated by single slashes, such as voiceai/staging", is_namespace);
    /// How often a running service reads every layer again, give or take a tenth. Settings marked as picked up while the service runs then take effect; so they do at once where a login with the old value was refused. While the stores cannot be read, the last good values stay in use, with a warning that says their age.
    SECRETS_REFRESH_INTERVAL: Duration = seconds().default("5m").between(1_000, 86_400_000);
    /// AWS region. That of another S3 store is `S3_REGION`.
    AWS_REGION: String = text().default("eu-central-1").bootstrap()
        .check("a region of AWS such as eu-central-1 (that of another S3 store is S3_REGION)", is_aws_region);
    /// True where the instance's own role is to be used and nothing else. Static keys beside it are refused: they would win in silence.
    AWS_USE_INSTANCE_PROFILE: bool = boolean().default("false");
    /// Static access key. The AWS credential chain reads the environment's itself; one that a higher layer holds stands in for whatever that chain finds, except for reading those layers.
    AWS_ACCESS_KEY_ID: Secret = secret().bootstrap().required_with("AWS_SECRET_ACCESS_KEY").rotates();
    /// Static secret key beside `AWS_ACCESS_KEY_ID`.
    AWS_SECRET_ACCESS_KEY: Secret = secret().bootstrap().required_with("AWS_ACCESS_KEY_ID").rotates();
}
