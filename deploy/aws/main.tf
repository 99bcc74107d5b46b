# What the services need of an AWS account: two roles with no more rights than each uses, buckets, settings and secrets to fill in,
# and mail. Servers themselves are made by voiceai-scaler.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  name       = "voiceai-ops-${var.environment}"
  partition  = data.aws_partition.this.partition
  account    = data.aws_caller_identity.this.account_id
  region     = data.aws_region.this.name
  kms        = var.kms_key_arn != ""
  tags       = merge({ "managed-by" = "terraform", environment = var.environment }, var.tags)
  parameters = "arn:${local.partition}:ssm:${local.region}:${local.account}:parameter/${var.namespace}/ops"
  secrets    = "arn:${local.partition}:secretsmanager:${local.region}:${local.account}:secret:${var.namespace}/ops/"
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = var.trusted_services
    }
  }
}
