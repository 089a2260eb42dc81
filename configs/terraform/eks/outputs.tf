output "launch_template" {
  description = "Launch template for other node groups: id and version."
  value = {
    id      = aws_launch_template.cacheyd.id
    version = aws_launch_template.cacheyd.latest_version
  }
}

output "user_data" {
  description = "The user data that a node gets from the launch template, in readable form."
  value       = local.user_data
}
