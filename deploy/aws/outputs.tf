output "role_arns" {
  description = "Roles of voiceai-scaler and voiceai-tasker."
  value       = { for name, role in aws_iam_role.this : name => role.arn }
}

output "instance_profiles" {
  description = "Instance profiles of hosts that run the services; set AWS_USE_INSTANCE_PROFILE=true there."
  value       = { for name, profile in aws_iam_instance_profile.this : name => profile.name }
}

output "buckets" {
  description = "Buckets by what they hold."
  value       = { for name, bucket in aws_s3_bucket.this : name => bucket.id }
}

output "secret_to_fill" {
  description = "The secret whose value a person sets."
  value       = aws_secretsmanager_secret.secrets.name
}

output "dkim_records" {
  description = "CNAME records that prove the mail domain."
  value = var.mail_domain == "" ? [] : [
    for token in aws_sesv2_email_identity.this[0].dkim_signing_attributes[0].tokens : {
      name  = "${token}._domainkey.${var.mail_domain}"
      value = "${token}.dkim.amazonses.com"
    }
  ]
}

output "feedback_topic_arn" {
  description = "SES_FEEDBACK_TOPIC_ARNS."
  value       = var.mail_domain == "" ? null : aws_sns_topic.feedback[0].arn
}
