# An identity of SES with DKIM, a configuration set that publishes what becomes of mail, and the topic that voiceai-tasker believes.

locals {
  mail = var.mail_domain == "" ? 0 : 1
}

resource "aws_sesv2_email_identity" "this" {
  count = local.mail

  email_identity         = var.mail_domain
  configuration_set_name = aws_sesv2_configuration_set.this[0].configuration_set_name
  tags                   = local.tags

  dkim_signing_attributes {
    next_signing_key_length = "RSA_2048_BIT"
  }
}

resource "aws_sesv2_configuration_set" "this" {
  count = local.mail

  configuration_set_name = local.name
  tags                   = local.tags

  delivery_options {
    tls_policy = "REQUIRE"
  }

  reputation_options {
    reputation_metrics_enabled = true
  }

  # Suppression is kept by voiceai-tasker, with its reasons; a second list would hide mail from it.
  suppression_options {
    suppressed_reasons = []
  }
}

resource "aws_sns_topic" "feedback" {
  count = local.mail

  name              = "${local.name}-mail-feedback"
  signature_version = 2
  tags              = local.tags
}

data "aws_iam_policy_document" "feedback" {
  count = local.mail

  statement {
    sid       = "Publish"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.feedback[0].arn]

    principals {
      type        = "Service"
      identifiers = ["ses.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

resource "aws_sns_topic_policy" "feedback" {
  count = local.mail

  arn    = aws_sns_topic.feedback[0].arn
  policy = data.aws_iam_policy_document.feedback[0].json
}

resource "aws_sesv2_configuration_set_event_destination" "feedback" {
  count = local.mail

  configuration_set_name = aws_sesv2_configuration_set.this[0].configuration_set_name
  event_destination_name = "feedback"

  event_destination {
    enabled              = true
    matching_event_types = ["BOUNCE", "COMPLAINT", "DELIVERY", "REJECT", "RENDERING_FAILURE", "DELIVERY_DELAY"]

    sns_destination {
      topic_arn = aws_sns_topic.feedback[0].arn
    }
  }
}

resource "aws_sns_topic_subscription" "feedback" {
  count = local.mail == 1 && var.feedback_endpoint != "" ? 1 : 0

  topic_arn = aws_sns_topic.feedback[0].arn
  protocol  = "https"
  endpoint  = var.feedback_endpoint
}
