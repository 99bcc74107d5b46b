# --- both services: their own settings and secrets, read only -----------------------------------------------------------------

data "aws_iam_policy_document" "settings" {
  statement {
    sid       = "Parameters"
    actions   = ["ssm:GetParametersByPath"]
    resources = [local.parameters, "${local.parameters}/*"]
  }

  statement {
    sid       = "Secrets"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = ["${local.secrets}*"]
  }

  # Names only; needed for any secret but the conventional one. AWS knows no narrower resource for it.
  statement {
    sid       = "SecretNames"
    actions   = ["secretsmanager:ListSecrets"]
    resources = ["*"]
  }

  dynamic "statement" {
    for_each = local.kms ? [var.kms_key_arn] : []

    content {
      sid       = "Decrypt"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["ssm.${local.region}.amazonaws.com", "secretsmanager.${local.region}.amazonaws.com"]
      }
    }
  }
}

# --- voiceai-scaler -------------------------------------------------------------------------------------------------------------

data "aws_iam_policy_document" "scaler" {
  source_policy_documents = [data.aws_iam_policy_document.settings.json]

  dynamic "statement" {
    for_each = var.scales_on_aws ? [1] : []

    content {
      sid       = "Look"
      actions   = ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus"]
      resources = ["*"]
    }
  }

  # Only with our tags in the very request that makes the server.
  dynamic "statement" {
    for_each = var.scales_on_aws ? [1] : []

    content {
      sid     = "RunTagged"
      actions = ["ec2:RunInstances"]
      resources = [
        "arn:${local.partition}:ec2:${local.region}:${local.account}:instance/*",
        "arn:${local.partition}:ec2:${local.region}:${local.account}:volume/*",
      ]

      condition {
        test     = "StringEquals"
        variable = "aws:RequestTag/environment"
        values   = [var.environment]
      }
    }
  }

  dynamic "statement" {
    for_each = var.scales_on_aws ? [1] : []

    content {
      sid     = "RunWith"
      actions = ["ec2:RunInstances"]
      resources = concat(
        [
          "arn:${local.partition}:ec2:${local.region}::image/*",
          "arn:${local.partition}:ec2:${local.region}:${local.account}:network-interface/*",
          "arn:${local.partition}:ec2:${local.region}:${local.account}:security-group/*",
          "arn:${local.partition}:ec2:${local.region}:${local.account}:key-pair/*",
        ],
        length(var.server_subnet_arns) > 0 ? var.server_subnet_arns : ["arn:${local.partition}:ec2:${local.region}:${local.account}:subnet/*"],
      )
    }
  }

  # imageId as resolve:ssm:PARAMETER.
  dynamic "statement" {
    for_each = var.scales_on_aws ? [1] : []

    content {
      sid       = "ImageParameter"
      actions   = ["ssm:GetParameters"]
      resources = ["arn:${local.partition}:ssm:${local.region}::parameter/aws/service/*"]
    }
  }

  dynamic "statement" {
    for_each = var.scales_on_aws ? [1] : []

    content {
      sid       = "TagAtCreation"
      actions   = ["ec2:CreateTags"]
      resources = ["arn:${local.partition}:ec2:${local.region}:${local.account}:*/*"]

      condition {
        test     = "StringEquals"
        variable = "ec2:CreateAction"
        values   = ["RunInstances"]
      }
    }
  }

  # Nothing that is not ours, whatever the service should ask for.
  dynamic "statement" {
    for_each = var.scales_on_aws ? [1] : []

    content {
      sid       = "EndOurs"
      actions   = ["ec2:TerminateInstances"]
      resources = ["arn:${local.partition}:ec2:${local.region}:${local.account}:instance/*"]

      condition {
        test     = "StringEquals"
        variable = "aws:ResourceTag/environment"
        values   = [var.environment]
      }

      condition {
        test     = "Null"
        variable = "aws:ResourceTag/operation"
        values   = ["false"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.scales_on_aws && length(var.server_role_arns) > 0 ? [1] : []

    content {
      sid       = "PassServerRole"
      actions   = ["iam:PassRole"]
      resources = var.server_role_arns

      condition {
        test     = "StringEquals"
        variable = "iam:PassedToService"
        values   = ["ec2.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = length(var.target_group_arns) > 0 ? [1] : []

    content {
      sid       = "Route"
      actions   = ["elasticloadbalancing:RegisterTargets", "elasticloadbalancing:DeregisterTargets"]
      resources = var.target_group_arns
    }
  }

  dynamic "statement" {
    for_each = length(var.target_group_arns) > 0 ? [1] : []

    content {
      sid       = "RouteHealth"
      actions   = ["elasticloadbalancing:DescribeTargetHealth"]
      resources = ["*"]
    }
  }
}

# --- voiceai-tasker -------------------------------------------------------------------------------------------------------------

data "aws_iam_policy_document" "tasker" {
  source_policy_documents = [data.aws_iam_policy_document.settings.json]

  statement {
    sid       = "Buckets"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"]
    resources = concat([for bucket in aws_s3_bucket.this : bucket.arn], compact([var.recordings_bucket_arn]))
  }

  # Delete: what a killed run has left, and nothing that a lifecycle rule would not bring back.
  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = concat([for bucket in aws_s3_bucket.this : "${bucket.arn}/*"], [for arn in compact([var.recordings_bucket_arn]) : "${arn}/*"])
  }

  dynamic "statement" {
    for_each = local.kms ? [var.kms_key_arn] : []

    content {
      sid       = "BucketKey"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.mail_domain == "" ? [] : [1]

    content {
      sid       = "Mail"
      actions   = ["ses:SendEmail", "ses:SendRawEmail"]
      resources = [aws_sesv2_email_identity.this[0].arn, aws_sesv2_configuration_set.this[0].arn]
    }
  }
}

# --- roles ----------------------------------------------------------------------------------------------------------------------

locals {
  policies = {
    scaler = data.aws_iam_policy_document.scaler.json
    tasker = data.aws_iam_policy_document.tasker.json
  }
}

resource "aws_iam_role" "this" {
  for_each = local.policies

  name                 = "${local.name}-${each.key}"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  max_session_duration = 3600
  tags                 = local.tags
}

resource "aws_iam_role_policy" "this" {
  for_each = local.policies

  name   = "voiceai-${each.key}"
  role   = aws_iam_role.this[each.key].id
  policy = each.value
}

# For hosts of their own: an instance must allow two hops to its metadata, or a container behind a bridge cannot reach it.
resource "aws_iam_instance_profile" "this" {
  for_each = contains(var.trusted_services, "ec2.amazonaws.com") ? local.policies : {}

  name = aws_iam_role.this[each.key].name
  role = aws_iam_role.this[each.key].name
  tags = local.tags
}
